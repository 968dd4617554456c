#!/usr/bin/env bash
# Build the Dockerfile without Docker, and run what comes of it as a container would: `make image-test`.
# The base is a stand-in, made of Debian's packages by this machine's own apt configuration.
set -euo pipefail
cd "$(dirname "$0")/.."

[ "$(id -u)" = 0 ] || { echo "image-test: not root, skipped"; exit 0; }
for tool in buildah debootstrap unshare setpriv; do
  command -v $tool > /dev/null || { echo "image-test: no $tool on this machine, skipped"; exit 0; }
done

BUDGET_MB=150 # of what the image adds to its base; it was 134
place=$(mktemp --directory /var/tmp/authsidecar-image.XXXXXX)
stores=(--root "$place/storage" --runroot "$place/run")
cleanup() {
  buildah "${stores[@]}" umount --all > /dev/null 2>&1 || true
  rm --recursive --force "$place"
}
trap cleanup EXIT
fail() { echo "image-test: $*" >&2; exit 1; }
image() { buildah "${stores[@]}" "$@"; }
inspect() { image inspect --format "{{$1}}" "$container"; }

# ------------------------------------------------------------------------------------ the stand-in
# shellcheck source=/dev/null
mirror=$(apt-get indextargets --format '$(REPO_URI)' "Codename: $(. /etc/os-release && echo "$VERSION_CODENAME")" | sort --unique | head --lines 1)
base=$place/base
debootstrap --variant=minbase --include=python3,python3-venv,ca-certificates \
  trixie "$base" "$mirror" > "$place/debootstrap.log" 2>&1 || { tail "$place/debootstrap.log"; fail "no base"; }
chroot "$base" python3 -m venv /usr/local # python and pip stand there, as in the real base
cp /etc/ssl/certs/ca-certificates.crt "$base/etc/ssl/certs/" # a proxy's certificate may be among them
printf '[global]\ncert = /etc/ssl/certs/ca-certificates.crt\n' > "$base/etc/pip.conf"
container=$(image from scratch)
image copy --quiet "$container" "$base" / > /dev/null
image commit --quiet "$container" stand-in > /dev/null
image rm "$container" > /dev/null
rm --recursive "$base"
echo "image-test: a stand-in for the base, $SECONDS s"

# --------------------------------------------------------------------------------------- the image
image build --quiet --isolation chroot --pull-never --network host --build-arg BASE=localhost/stand-in \
  --build-arg VERSION=test --tag authsidecar . > "$place/build.log" 2>&1 || { tail --lines 30 "$place/build.log"; fail "it can't be built"; }
container=$(image from --pull-never localhost/authsidecar)
root=$(image mount "$container")
for label in title description licenses version revision base.name; do
  [ -n "$(inspect "index .OCIv1.Config.Labels \"org.opencontainers.image.$label\"")" ] || fail "no label $label"
done
[ "$(inspect .OCIv1.Config.User)" = 10001:10001 ] || fail "its user is $(inspect .OCIv1.Config.User)"
size=$(du --summarize --block-size 1M "$root/opt/authsidecar" | cut --fields 1)
[ "$size" -le $BUDGET_MB ] || fail "$size MB are over the budget of $BUDGET_MB"

# What is in it is what the SBOM beside it says.
.venv/bin/python - "$root" dist/authsidecar.cdx.json << 'EOF'
import json, sys
from importlib.metadata import distributions
from pathlib import Path
from packaging.utils import canonicalize_name as name
(packages,) = Path(sys.argv[1], "opt/authsidecar/lib").glob("python3*/site-packages")
inside = {(name(one.name), one.version) for one in distributions(path=[str(packages)])}
bom = json.loads(Path(sys.argv[2]).read_text())
told = {(name(one["name"]), one["version"]) for one in bom["components"]}
main = bom["metadata"]["component"]
older = {"async-timeout"}  # for the Python of the SBOM's environment alone
differ = {one for one in inside ^ told if one[0] not in {main["name"], *older}}
sys.exit(f"image-test: the SBOM differs in {differ}" if differ else 0)
EOF

# -------------------------------------------------------------------- read-only, without privileges
# In a network of its own; its data volume and /tmp alone can be written. The command and the health
# check are the image's own.
environment=$(inspect 'range .OCIv1.Config.Env}}{{println .}}{{end' | tr '\n' ' ')
serve=$(inspect 'range .OCIv1.Config.Entrypoint}}{{.}} {{end}}{{range .OCIv1.Config.Cmd}}{{.}}{{end')
[ "$serve" = "authsidecar serve" ] || fail "it would run: $serve"
for user in 10001 $((RANDOM + 20000)); do
  data=$place/data-$user
  mkdir --mode 0700 "$data" && chown "$user:$user" "$data"
  unshare --mount --net --pid --fork --kill-child /bin/bash -euo pipefail -c "
    mount --make-rprivate /
    mount --bind $root $root
    mount -o remount,bind,ro $root
    mount --bind $data $root/var/lib/authsidecar
    mount -t proc proc $root/proc
    mount --bind /dev $root/dev
    mount -t tmpfs tmpfs $root/tmp
    ip link set lo up
    inside() {
      exec chroot $root /usr/bin/setpriv --reuid $user --regid $user --clear-groups --no-new-privs \
        --inh-caps=-all --bounding-set=-all \
        /usr/bin/env --ignore-environment --chdir /var/lib/authsidecar $environment \"\$@\"
    }
    ! (inside touch /probe) 2> /dev/null
    inside $serve > $place/serve-$user.log 2>&1 &
    until (inside authsidecar health); do
      kill -0 \$! && [ \$SECONDS -lt 60 ]
      sleep 0.5
    done 2> $place/health-$user.log
    kill -TERM \$!
    wait \$!
  " || { cat "$place"/{serve,health}-"$user".log; fail "user $user: it is not ready, or does not end well"; }
  echo "image-test: ready and ended as user $user"
done
echo "image-test: $(chroot "$root" python --version), $size MB of $BUDGET_MB, $SECONDS s"
