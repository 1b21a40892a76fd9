#!/usr/bin/env bash
# Start or stop a SLURM cluster for tests, with this machine as its only node. The cluster needs no systemd and no
# accounting, and writes only to the folder FOLDER.
#
#   tests/helpers/slurm_cluster.sh start FOLDER    prints SLURM_CONF=FOLDER/slurm.conf as soon as the node is idle
#   tests/helpers/slurm_cluster.sh stop FOLDER     stops all processes of the cluster
#
# The script needs the Debian packages slurm-wlm and munge. Each cluster has separate keys, sockets, ports and logs. So
# several clusters can run at the same time, and next to a real SLURM of this machine.
set -euo pipefail
PATH=$PATH:/usr/sbin:/sbin
SECONDS_TO_WAIT=30

usage() { echo "usage: $0 start|stop FOLDER" >&2; exit 2; }
[ $# = 2 ] || usage
mkdir -p "$2"
folder=$(cd "$2" && pwd -P)
export SLURM_CONF=$folder/slurm.conf

configure() {
  local name port cpus memory
  name=$(hostname -s 2>/dev/null || hostname)
  port=$(shuf -i 20000-29998 -n 1)
  cpus=$(env -u OMP_NUM_THREADS nproc)  # without env -u, nproc would return OMP_NUM_THREADS
  memory=$(awk '/MemTotal/ {print int($2 / 1024 * 0.8)}' /proc/meminfo)  # in MB; SLURM drains a node whose config has more memory than the machine
  rm -rf "$folder/state" "$folder/spool"
  mkdir -p "$folder/state" "$folder/spool"
  echo "CgroupPlugin=disabled" >"$folder/cgroup.conf"
  cat >"$SLURM_CONF" <<CONF
ClusterName=flap
SlurmctldHost=$name(127.0.0.1)
SlurmctldPort=$port
SlurmdPort=$((port + 1))
SlurmUser=$(id -un)
SlurmdUser=$(id -un)
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket=$folder/munge.socket
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
ReturnToService=2
KillWait=1
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
NodeName=$name NodeAddr=127.0.0.1 CPUs=$cpus RealMemory=$memory State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
CONF
}

pid_of() { cat "$folder/$1.pid" 2>/dev/null || true; }

# A zombie process counts as ended, because in a container there may be no process that reaps it.
is_alive() { [ -n "$1" ] && grep -qs '^State:[[:space:]]*[^ZX]' "/proc/$1/status"; }

# Succeed if the node is idle or runs a job. Call sinfo only while the controller runs, because without a controller,
# SLURM's commands wait for a long time.
is_up() {
  is_alive "$(pid_of slurmctld)" && [[ $(timeout 5 sinfo --noheader --format=%T) =~ ^(idle|mixed|allocated)$ ]]
}

start() {
  if is_up; then echo "SLURM_CONF=$SLURM_CONF"; return; fi
  stop  # a failed start may have left processes
  configure
  [ -s "$folder/munge.key" ] || (umask 077; head -c 1024 /dev/urandom >"$folder/munge.key")
  {
    munged --force --key-file="$folder/munge.key" --socket="$folder/munge.socket" \
      --pid-file="$folder/munged.pid" --log-file="$folder/munged.log" --seed-file="$folder/munged.seed" &&
      slurmctld && slurmd
  } >"$folder/start.log" 2>&1 || fail "a daemon did not start"
  for _ in $(seq $((SECONDS_TO_WAIT * 2))); do
    if is_up; then echo "SLURM_CONF=$SLURM_CONF"; return; fi
    sleep 0.5
  done
  fail "the node is not idle after $SECONDS_TO_WAIT s"
}

fail() {
  echo "slurm_cluster: $1; the ends of the logs follow" >&2
  tail -n 20 "$folder"/*.log >&2
  sinfo --long --Node >&2 || true
  stop
  exit 1
}

stop() {
  local daemon pid pids=()
  if is_alive "$(pid_of slurmctld)"; then end_jobs || echo "slurm_cluster: jobs outlived scancel" >&2; fi
  for daemon in slurmctld slurmd munged; do
    pid=$(pid_of "$daemon")
    if is_alive "$pid"; then kill "$pid" && pids+=("$pid"); fi
  done
  for pid in "${pids[@]}"; do
    for _ in $(seq 50); do is_alive "$pid" || break; sleep 0.1; done
    if is_alive "$pid"; then kill -KILL "$pid"; fi
  done
  rm -f "$folder"/*.pid  # other processes may later get these process ids
}

end_jobs() {
  timeout 5 scancel --quiet --user="$(id -un)" || return
  for _ in $(seq 20); do
    [ -n "$(timeout 5 squeue --noheader)" ] || return 0
    sleep 0.5
  done
  return 1
}

case $1 in start | stop) "$1" ;; *) usage ;; esac
