#!/usr/bin/env bash
# Runs deploy/slurm.sbatch on a real SLURM of one node on 127.0.0.1: a search whose time limit is too short for it is
# stopped, queued again by itself, and resumes until it is done. Takes about fifteen minutes. Skips, saying why, where SLURM
# is not installed (Debian: slurm-wlm, munge) or this is not root; exit code 1 where something is not as it should be.
set -eu

skip() { echo "skipped: $1"; exit 0; }
for program in slurmctld slurmd munged mungekey sbatch; do
    PATH="$PATH:/usr/sbin" command -v "$program" > /dev/null || skip "$program is not installed"
done
[ "$(id -u)" = 0 ] || skip "slurmctld, slurmd and munged are started as root here"
PATH="$PATH:/usr/sbin"
# Ray refuses a machine where another Ray runs, and ends every Ray there: here it sees its own processes only.
if [ "${ALONE:-}" != yes ]; then
    ALONE=yes exec unshare --pid --mount --fork --kill-child --mount-proc "$0" "$@"
fi
mkdir -p /tmp/ray
mount -t tmpfs none /tmp/ray

cd "$(dirname "$0")/.."
work=$(mktemp -d /tmp/slurm-XXXXXX)
chmod 755 "$work"
mkdir "$work/state" "$work/spool"
node=$(hostname -s)
cat > "$work/slurm.conf" <<CONF
ClusterName=loopback
SlurmctldHost=$node(127.0.0.1)
SlurmctldPort=16817
SlurmdPort=16818
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$work/munge.socket
CryptoType=crypto/munge
StateSaveLocation=$work/state
SlurmdSpoolDir=$work/spool
SlurmctldPidFile=$work/slurmctld.pid
SlurmdPidFile=$work/slurmd.pid
SlurmctldLogFile=$work/slurmctld.log
SlurmdLogFile=$work/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
ReturnToService=2
KillWait=30
PlugStackConfig=/dev/null
NodeName=$node NodeAddr=127.0.0.1 CPUs=$(nproc) State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
CONF
export SLURM_CONF="$work/slurm.conf"
pids=
stop() {
    [ -z "${job:-}" ] || scancel "$job" 2> /dev/null || true
    # shellcheck disable=SC2086
    [ -z "$pids" ] || kill $pids 2> /dev/null || true
}
trap stop EXIT

mungekey --create --keyfile="$work/munge.key"
munged --foreground --force --key-file="$work/munge.key" --socket="$work/munge.socket" --pid-file="$work/munge.pid" \
    --seed-file="$work/munge.seed" --log-file="$work/munge.log" --origin=127.0.0.1 > "$work/munged.out" 2>&1 &
pids="$pids $!"
slurmctld -D > "$work/slurmctld.out" 2>&1 &
pids="$pids $!"
slurmd -D -N "$node" > "$work/slurmd.out" 2>&1 &
pids="$pids $!"
for _ in $(seq 30); do
    sinfo -h -o %T 2> /dev/null | grep -q idle && break
    sleep 1
done
sinfo || { echo "SLURM did not start; see $work"; exit 1; }

# The signal may come a minute early: of four minutes the search has two to three, with the start of Ray.
job=$(sbatch --parsable --time=4 --signal=B:USR1@60 --output="$work/job.log" deploy/slurm.sbatch \
    --space demo.yaml --trials 5 --max-epochs 8 --no-confirm --out "$work/search" --seed 0 "$@")
echo "job $job; its log is $work/job.log"
state=
for _ in $(seq 300); do
    now=$(squeue -h -j "$job" -o "%T %r" 2> /dev/null || true)
    [ "$now" = "$state" ] || { state=$now; echo "$(date +%T) ${state:-ended}"; }
    [ -n "$now" ] || break
    case "$now" in COMPLETED* | FAILED* | CANCELLED* | TIMEOUT*) break ;; esac
    sleep 5
done
scontrol show job "$job" | grep -E "JobState|Restarts" || true
grep -E "queued again|interrupted; everything|winner|gain" "$work/job.log" || true
stops=$(grep -c "queued again" "$work/job.log" || true)
[ "$stops" -ge 1 ] || { echo "the search was never stopped"; exit 1; }
[ -f "$work/search/summary.json" ] || { echo "the search did not end; see $work"; exit 1; }
.venv/bin/python - "$work/search" <<'PYTHON'
import csv, sys
rows = list(csv.DictReader(open(sys.argv[1] + "/leaderboard.csv", encoding="utf-8")))
names = [row["trial"] for row in rows]
assert len(names) == len(set(names)), "a trial stands twice"
assert all(row["status"] != "interrupted" for row in rows), "a trial was left unfinished"
print(f"{len(rows)} trials, none twice, none left unfinished")
PYTHON
echo "stopped and queued again $stops time(s), then finished"
