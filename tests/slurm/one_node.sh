#!/usr/bin/env bash
# A Slurm of one node on 127.0.0.1, from Debian's packages, and a study of this course through it.
#
#     sudo apt-get install slurmctld slurmd munge slurm-client
#     sudo tests/slurm/one_node.sh python        # the Python that has lorahub-edu[cluster]
#
# Runs as root, in a scratch folder; the daemons that it starts end with it.
set -euo pipefail
python=$(command -v "${1:-python}")
here=$(cd "$(dirname "$0")" && pwd)
D=$(mktemp -d)
host=$(hostname)
mkdir -p "$D"/{state,spool,log} /run/munge /var/log/munge /var/lib/munge
chown munge: /run/munge /var/log/munge /var/lib/munge /etc/munge
test -f /etc/munge/munge.key || { dd if=/dev/urandom of=/etc/munge/munge.key bs=1024 count=1 status=none; }
chown munge: /etc/munge/munge.key && chmod 400 /etc/munge/munge.key
cat >"$D/slurm.conf" <<CONF
ClusterName=local
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=16817
SlurmdPort=16818
AuthType=auth/munge
SlurmUser=root
StateSaveLocation=$D/state
SlurmdSpoolDir=$D/spool
SlurmctldPidFile=$D/ctld.pid
SlurmdPidFile=$D/d.pid
SlurmctldLogFile=$D/log/ctld
SlurmdLogFile=$D/log/d
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
MpiDefault=none
ReturnToService=2
JobCompType=jobcomp/filetxt
JobCompLoc=$D/jobs.txt
NodeName=$host NodeAddr=127.0.0.1 CPUs=$(nproc --all) RealMemory=$(($(free -m | awk '/^Mem/ {print $2}') * 8 / 10)) State=UNKNOWN
PartitionName=debug Nodes=ALL Default=YES MaxTime=INFINITE State=UP
CONF
export SLURM_CONF="$D/slurm.conf"
stop() {
  for file in "$D/d.pid" "$D/ctld.pid" "$D/munge.pid"; do
    if test -f "$file"; then kill "$(cat "$file")" 2>/dev/null || true; fi
  done
}
trap stop EXIT
if ! munge -n >/dev/null 2>&1; then
  runuser -u munge -- /usr/sbin/munged --pid-file=/run/munge/own.pid && cp /run/munge/own.pid "$D/munge.pid"
fi
slurmctld -f "$SLURM_CONF"
slurmd -f "$SLURM_CONF"
for _ in $(seq 30); do sinfo -h -o %T | grep -q idle && break || sleep 1; done
sinfo
"$python" "$here/study.py" "$D"
echo "what Slurm says of its jobs:"
for _ in $(seq 30); do squeue -h | grep -q . && sleep 1 || break; done
grep -o "JobId=[0-9]* \|Name=[^ ]* \|JobState=[A-Z]*\|StartTime=[^ ]*\|EndTime=[^ ]*" "$D/jobs.txt" | paste -sd ' ' | sed 's/JobId/\nJobId/g'
