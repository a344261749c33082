// npm's etcd3 against a server on 127.0.0.1; the port is the only argument. NODE_PATH has the package.
import { createRequire } from 'node:module';
const { Etcd3, EtcdLockFailedError } = createRequire(process.env.NODE_PATH + '/')('etcd3');

const port = process.argv[2];
const client = new Etcd3({ hosts: `http://127.0.0.1:${port}` });

function same(what, expected, found) {
    const [a, b] = [expected, found].map((value) => JSON.stringify(value));
    if (a !== b) throw new Error(`FAILED: node ${what}: expected ${a}, found ${b}`);
    console.log(`ok: node ${what}`);
}

async function steps() {
    await client.put('js/a').value('one');
    same('put and get', 'one', await client.get('js/a').string());
    same('get of a missing key', null, await client.get('js/none').string());
    await client.put('js/b').value('two');
    same('getAll', { 'js/a': 'one', 'js/b': 'two' }, await client.getAll().prefix('js/').strings());
    same('keys in descending order', ['js/b', 'js/a'], await client.getAll().prefix('js/').sort('Key', 'Descend').keys());
    same('count', 2, await client.getAll().prefix('js/').count());
    same('limit', ['js/a'], await client.getAll().prefix('js/').limit(1).keys());

    const txn = await client
        .if('js/a', 'Value', '==', 'one')
        .and('js/none', 'Create', '==', 0)
        .then(client.put('js/c').value('new'), client.get('js/c'))
        .else(client.delete().key('js/c'))
        .commit();
    same('transaction', [true, 'new'], [txn.succeeded, txn.responses[1].response_range.kvs[0].value.toString()]);
    await client.stm({ retries: 3 }).transact(async (tx) => tx.put('js/c').value((await tx.get('js/c')) + 'er'));
    same('software transaction', 'newer', await client.get('js/c').string());

    const watcher = await client.watch().prefix('js/w/').withPreviousKV().create();
    const seen = [];
    const both = new Promise((resolve, reject) => {
        watcher.on('put', (kv) => seen.push(`PUT ${kv.key} ${kv.value}`));
        watcher.on('delete', (kv, before) => {
            seen.push(`DELETE ${kv.key} ${before.value}`);
            resolve();
        });
        watcher.on('error', reject);
    });
    await client.put('js/w/1').value('x');
    await client.delete().key('js/w/1');
    await both;
    same('watch', ['PUT js/w/1 x', 'DELETE js/w/1 x'], seen);
    await watcher.cancel();

    const lease = client.lease(600, { autoKeepAlive: false });
    await lease.put('js/l').value('x');
    same('lease keepalive', '600', (await lease.keepaliveOnce()).TTL);
    await lease.revoke();
    same('key of a revoked lease', null, await client.get('js/l').string());

    const lock = await client.lock('js-lock').acquire();
    const refused = await client.lock('js-lock').acquire().then(() => 'given', (error) => error instanceof EtcdLockFailedError);
    same('lock is not given twice', true, refused);
    await lock.release();
    await (await client.lock('js-lock').acquire()).release();
    same('lock is released', null, await client.get('js-lock').string());

    const election = client.election('js-election', 60);
    const campaign = election.campaign('me');
    await new Promise((resolve, reject) => campaign.on('elected', resolve).on('error', reject));
    same('election', 'me', await election.leader());
    await campaign.resign();

    const { header } = await client.put('js/a').value('three');
    await client.kv.compact({ revision: header.revision });
    const late = await client.watch().key('js/a').startRevision('1').watcher();
    const cancelled = await new Promise((resolve) => late.on('error', resolve));
    same('watch below the floor', true, /Watcher canceled/.test(cancelled.message));
    const old = client.get('js/a').revision(1).string();
    same('get below the floor', true, await old.then(() => false, (error) => /has been compacted/.test(error.message)));
    same('delete', '3', (await client.delete().prefix('js/')).deleted);
}

const late = setTimeout(() => {
    console.error('FAILED: node: the steps take too long');
    process.exit(1);
}, 60_000);
await steps().catch((error) => {
    console.error(error);
    process.exit(1);
});
clearTimeout(late);
client.close();
process.exit(0);
