"""What a run is watched for."""
