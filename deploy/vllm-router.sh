#!/bin/sh
# vllm-router in front of two servers on this machine, or of those that are named: a session (X-Session-ID) stays on one server,
# whose prefix cache knows it; a server that is not ready gets nothing new.
#
#   deploy/vllm-router.sh                                             # clients at port 10000
#   deploy/vllm-router.sh --port 8000 --worker-urls http://a:8000 http://b:8000
#
# Of a flag that is given twice the last counts.
set -eu
[ "$#" -gt 0 ] || set -- --port 10000 --worker-urls http://127.0.0.1:8001 http://127.0.0.1:8002

# Health: /ready says when a server drains, /health does not. Once a second, so that a dead server is known within two.
# Retries: 0.1 + 0.2 + … + 1 + 1 = 4.5 seconds of them, as the hash names the dead server until its health check has failed.
# No circuit breaker: it takes the 429s of a full server for failures; health alone decides.
exec vllm-router \
  --policy consistent_hash \
  --health-check-endpoint /ready --health-check-interval-secs 1 --health-check-timeout-secs 1 \
  --health-failure-threshold 1 --health-success-threshold 1 \
  --retry-max-retries 8 --retry-initial-backoff-ms 100 --retry-backoff-multiplier 2 --retry-max-backoff-ms 1000 \
  --disable-circuit-breaker \
  --log-level warning \
  "$@"
