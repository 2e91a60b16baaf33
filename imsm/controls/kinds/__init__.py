"""The controls, a module each (see `imsm.controls`)."""
