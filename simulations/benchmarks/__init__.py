"""What training, the coordinator and a deployment cost."""
