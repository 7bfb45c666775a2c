"""Routing and autoscaling of many replicas, on service times that were measured with one: `python -m deploy.simulate`."""
