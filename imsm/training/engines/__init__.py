"""Training engines: plain torch on one device, DeepSpeed ZeRO or FSDP2 on several."""
