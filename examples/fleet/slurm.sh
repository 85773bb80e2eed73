#!/usr/bin/env bash
# A fleet as a job of Slurm: `sbatch slurm.sh plan.toml`. See doc/fleet-slurm.md.
#SBATCH --job-name=fleet
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=4
#SBATCH --mem=0
#SBATCH --exclusive
#SBATCH --time=08:00:00
# Two minutes before the time is over, this script is told, so that the fleet ends as it should.
#SBATCH --signal=B:TERM@120
set -euo pipefail

plan=$1
scheduler=tcp://$SLURMD_NODENAME:${FLEET_PORT:-8786}
export DASK_DISTRIBUTED__WORKER__MULTIPROCESSING_METHOD=forkserver
export DASK_DISTRIBUTED__COMM__TIMEOUTS__TCP=11s
export DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL=null

fleet=
trap '[ -z "$fleet" ] || kill -TERM "$fleet"' TERM

dask scheduler --port "${FLEET_PORT:-8786}" --no-dashboard &
# One worker on each node, beside what else this script runs there.
srun --overlap --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 \
    dask worker "$scheduler" --nthreads 1 --memory-limit 0 --resources NIC=1 --no-dashboard &
python -c "from distributed import Client; Client('$scheduler', timeout=300).wait_for_workers($SLURM_JOB_NUM_NODES, 300)"

speadrx fleet "$plan" --scheduler "$scheduler" --interval 1min --metrics-port "${FLEET_METRICS_PORT:-9400}" \
    --metrics-address 0.0.0.0 &
fleet=$!
# A signal ends the waiting, not the fleet.
status=0
wait "$fleet" || status=$?
while kill -0 "$fleet" 2>/dev/null; do
    status=0
    wait "$fleet" || status=$?
done
# shellcheck disable=SC2046
kill $(jobs -p) 2>/dev/null || true
wait || true
exit "$status"
