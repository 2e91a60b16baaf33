"""The processes of a run: launching, rendezvous, communication and supervision."""
