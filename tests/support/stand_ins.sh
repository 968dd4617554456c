# Stand-ins for what a documented command asks for and this machine must not do or does not have.
# Each judges its arguments, so that a typo fails, and does what can be done for real.

# Also where `set -e` does not see a failure: in a pipeline, before `&&`.
refuse() {
  echo "$*" >>"$REFUSED"
  exit 1
}

# Commands that run until Ctrl-C: started for real, and ended by it once they have said something.
until_told() {
  "$@" >told 2>&1 &
  local process=$!
  until [[ -s told ]]; do
    kill -0 "$process" || refuse "$* ends at once, and says nothing"
    sleep 0.05
  done
  # A shell starts what runs behind it with Ctrl-C ignored, and the first word can come before the
  # program listens for it: ask again.
  while kill -INT "$process" 2>/dev/null; do
    for _ in {1..60}; do
      kill -0 "$process" 2>/dev/null || break 2
      sleep 0.05
    done
  done
  wait "$process" || refuse "$* fails: $(cat told)"
  cat told
}

until_listening() {
  until (: <"/dev/tcp/127.0.0.1/$1") 2>/dev/null; do sleep 0.05; done
}

# The project's own tasks are run by whoever runs this; here it is enough that they exist.
make() {
  [[ $# == 1 ]] && grep -q "^$1:.*##" "$ROOT/Makefile" || refuse "make $*"
}

# Nothing is installed: what the extra asks for is installed here already.
pip() {
  [[ $# == 2 && $1 == install && $2 =~ ^\.\[([a-z]+)\]$ ]] || refuse "pip $*"
  grep -q "^${BASH_REMATCH[1]} = \[" "$ROOT/pyproject.toml" || refuse "pip $*: no such extra"
}

python3() {
  [[ "$*" == "-m venv venv" ]] || refuse "python3 $*"
  mkdir -p venv/bin
  : >venv/bin/activate
}

git() {
  [[ $# == 3 && $1 == clone ]] || refuse "git $*"
  mkdir -p "$3"
  cp -r "$ROOT/deploy" "$3/deploy"
}

vi() {
  [[ $# == 1 && -w $1 ]] || refuse "vi $*"
}

nginx() {
  [[ "$*" == -t ]] || refuse "nginx $*"
  "$NGINX" -t -p "$PWD" -c "$PWD/nginx.conf" -e stderr -g "pid $PWD/nginx.pid;"
}

docker() {
  case $1 in
    compose) compose "${@:2}" ;;
    network)
      local format='{{range .IPAM.Config}}{{.Subnet}},{{end}}'
      [[ "$*" == "network inspect coolify --format $format" ]] || refuse "docker $*"
      echo 10.0.1.0/24,
      ;;
    exec)
      shift
      [[ $1 == -i ]] && shift
      [[ "$1 $2" == "coolify-db psql" ]] || refuse "docker exec $*"
      "$PSQL" "${@:3}"
      ;;
    *) refuse "docker $*" ;;
  esac
}

# The compose files are held to the specification elsewhere; here, to the command.
compose() {
  local file=compose.yaml name
  if [[ $1 == -f ]]; then
    file=$2
    shift 2
  fi
  [[ -f $file ]] || refuse "docker compose: no $file in $PWD"
  for name in $(sed -n 's/.*\${\([A-Z_]*\):?.*/\1/p' "$file"); do
    grep -q "^$name=." .env || refuse "docker compose: $name is not set in .env"
  done
  if [[ "$*" == "--profile monitoring "* ]]; then
    shift 2
  fi
  case "$*" in
    "up --detach" | "up --detach --build") eval "${ON_UP:-}" ;;
    "down" | "down --volumes") ;;
    "exec authsidecar authsidecar "*) "${@:3}" ;;
    "logs authsidecar" | "logs --no-log-prefix authsidecar") cat "$SIDECAR_LOG" ;;
    *) refuse "docker compose $*" ;;
  esac
}
