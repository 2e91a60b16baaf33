"""Training engines: plain torch on one device, DeepSpeed ZeRO on several."""
