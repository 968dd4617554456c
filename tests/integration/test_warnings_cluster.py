"""Last uses and warnings on a real Redis Cluster, whose keys are in many slots."""

from ipaddress import ip_address

import pytest

from authsidecar.decision.model import TokenId
from authsidecar.decision.usage import Used
from authsidecar.store.connect import Connection, connected
from authsidecar.store.keys import Keys
from authsidecar.store.last_used import LastUses, last_use
from authsidecar.store.usage import usage_of
from authsidecar.times import UnixMs
from tests.integration.test_warnings import Spy, expiring, rounds
from tests.support import seed
from tests.support.topologies import cluster

pytestmark = pytest.mark.any_python


async def test_uses_and_warnings_work_on_a_cluster(tmp_path):
    """Each token's use is written, each warning goes out once, wherever its key is."""
    numbers = [TokenId(n) for n in range(1, 31)]
    with cluster(tmp_path) as servers:
        async with connected(Connection(servers.url, data_dir=tmp_path)) as client:
            await expiring(seed.registry(client), *[1] * len(numbers))
            uses = LastUses(client, Keys())
            client_ip = ip_address("192.0.2.1")
            for number in numbers:
                uses.used(number, UnixMs(1000 + number), client_ip, "/api/v1/teams")
                uses.note(number, UnixMs(1000 + number), Used("GET /api/v1/teams"))
            await uses.write()
            assert set(await usage_of(client, Keys(), numbers)) == set(numbers)
            found = await last_use(client, Keys(), numbers)
            assert {token: use.at for token, use in found.items()} == {n: 1000 + n for n in numbers}
            spy = Spy()
            for _ in range(2):
                await rounds(client, spy).once()
            assert sorted(spy.warned()) == [(n, 24) for n in numbers]
            assert {notice.use for notice in spy.notices} == set(found.values())
            await seed.registry(client).remove_token(numbers[0])
            assert set(await usage_of(client, Keys(), numbers)) == set(numbers[1:])
