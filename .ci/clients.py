"""Python's etcd3 client against a server on 127.0.0.1; the port is the only argument."""
import sys

import etcd3

client = etcd3.client(host="127.0.0.1", port=int(sys.argv[1]), timeout=10)


def same(what, expected, found):
    if expected != found:
        sys.exit(f"FAILED: python {what}: expected {expected!r}, found {found!r}")
    print(f"ok: python {what}")


client.put("py/a", "one")
value, meta = client.get("py/a")
same("put and get", (b"one", b"py/a", 1), (value, meta.key, meta.version))
same("get of a missing key", (None, None), client.get("py/none"))
same("put with prev_kv", b"one", client.put("py/a", "two", prev_kv=True).prev_kv.value)
same("put_if_not_exists", (False, True), (client.put_if_not_exists("py/a", "x"), client.put_if_not_exists("py/b", "y")))
same("replace", (False, True), (client.replace("py/a", "one", "z"), client.replace("py/a", "two", "three")))
same("get_prefix", [b"three", b"y"], [value for value, _ in client.get_prefix("py/")])
same(
    "get_prefix in descending order",
    [b"py/b", b"py/a"],
    [meta.key for _, meta in client.get_prefix("py/", sort_order="descend", sort_target="key")],
)

t = client.transactions
succeeded, answers = client.transaction(
    compare=[t.value("py/a") == "three", t.version("py/b") > 0],
    success=[t.put("py/c", "new"), t.get("py/c")],
    failure=[t.delete("py/c")],
)
same("transaction", (True, b"new"), (succeeded, answers[1][0][0]))

events, cancel = client.watch_prefix("py/w/")
client.put("py/w/1", "x")
client.delete("py/w/1")
seen = [next(events), next(events)]
same("watch", ["PutEvent", "DeleteEvent"], [type(event).__name__ for event in seen])
same("watch order", True, seen[0].mod_revision < seen[1].mod_revision)
cancel()

lease = client.lease(600)
client.put("py/l", "x", lease=lease)
same("lease keys", [b"py/l"], list(lease.keys))
same("lease refresh", 600, lease.refresh()[0].TTL)
lease.revoke()
same("key of a revoked lease", (None, None), client.get("py/l"))

with client.lock("py-lock", ttl=60) as lock:
    same("lock is held", True, lock.is_acquired())

revision = client.put("py/a", "four").header.revision
client.compact(revision)
same("status", True, client.status().version != "")
same("members", [f"http://127.0.0.1:{sys.argv[1]}"], list(list(client.members)[0].client_urls))
same("delete", (True, False), (client.delete("py/a"), client.delete("py/a")))
same("delete_prefix", 2, client.delete_prefix("py/").deleted)
