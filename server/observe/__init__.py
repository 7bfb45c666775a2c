"""What happened to a request, written once and read by metrics, traces and logs."""
