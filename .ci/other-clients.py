"""Python's aetcd, an asyncio client, against a server on 127.0.0.1; the port is the only argument."""
import asyncio
import sys

import aetcd


def same(what, expected, found):
    if expected != found:
        sys.exit(f"FAILED: aetcd {what}: expected {expected!r}, found {found!r}")
    print(f"ok: aetcd {what}")


async def main():
    async with aetcd.Client(host="127.0.0.1", port=int(sys.argv[1]), timeout=10) as client:
        await client.put(b"aio/a", b"one")
        found = await client.get(b"aio/a")
        same("put and get", (b"one", 1), (found.value, found.version))
        same("get of a missing key", None, await client.get(b"aio/none"))
        same("put with prev_kv", b"one", (await client.put(b"aio/a", b"two", prev_kv=True)).prev_kv.value)
        same("replace", (False, True), (await client.replace(b"aio/a", b"x", b"y"), await client.replace(b"aio/a", b"two", b"2")))
        await client.put(b"aio/b", b"1")
        found = await client.get_prefix(b"aio/", sort_order="descend", sort_target="key")
        same("get_prefix in descending order", [b"aio/b", b"aio/a"], [kv.key for kv in found])

        t = client.transactions
        succeeded, answers = await client.transaction(
            compare=[t.value(b"aio/a") == b"2", t.version(b"aio/none") == 0],
            success=[t.put(b"aio/c", b"new"), t.get(b"aio/c")],
            failure=[t.delete(b"aio/c")],
        )
        same("transaction", (True, b"new"), (succeeded, answers[1][0][0]))

        watch = await client.watch_prefix(b"aio/w/", prev_kv=True)
        await client.put(b"aio/w/1", b"x")
        await client.delete(b"aio/w/1")
        seen = []
        async for event in watch:
            seen.append((event.kind, event.kv.key, event.prev_kv.value if event.prev_kv else b""))
            if len(seen) == 2:
                await watch.cancel()
                break
        same("watch", [("PUT", b"aio/w/1", b""), ("DELETE", b"aio/w/1", b"x")], seen)

        lease = await client.lease(600)
        await client.put(b"aio/l", b"x", lease=lease)
        same("lease keys", [b"aio/l"], list(await lease.keys()))
        same("lease refresh", 600, (await lease.refresh()).TTL)
        await lease.revoke()
        same("key of a revoked lease", None, await client.get(b"aio/l"))

        async with client.lock(b"aio-lock", ttl=60) as lock:
            same("lock is held", True, await lock.is_acquired())
            other = client.lock(b"aio-lock", ttl=60)
            same("lock is not given twice", False, await other.acquire(timeout=0))
        same("lock is given again", True, await other.acquire(timeout=10))
        same("lock is released", True, await other.release())

        revision = (await client.put(b"aio/a", b"3")).header.revision
        await client.compact(revision)
        watch = await client.watch(b"aio/a", start_revision=1)
        try:
            async for event in watch:
                sys.exit(f"FAILED: aetcd watch below the floor: {event!r}")
        except aetcd.RevisionCompactedError as error:
            same("watch below the floor", revision, error.compacted_revision)
        same("members", [f"http://127.0.0.1:{sys.argv[1]}"], [list(m.client_urls)[0] async for m in client.members()])
        same("delete", (b"3", None), ((await client.delete(b"aio/a", prev_kv=True)).prev_kv.value, await client.delete(b"aio/a")))
        same("delete_prefix", 2, (await client.delete_prefix(b"aio/")).deleted)


asyncio.run(asyncio.wait_for(main(), 60))
