"""gossipseg: federated medical-image segmentation without a server."""

__version__ = "0.5.0.dev0"
