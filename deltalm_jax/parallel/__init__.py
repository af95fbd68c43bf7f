"""Devices: starting the processes, laying out the mesh, and which array is split over which axis."""
