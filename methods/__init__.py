"""The methods beside FedIRM itself, one file each."""
