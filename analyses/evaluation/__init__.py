"""Evaluations of frozen features with protocols of their own: k-NN of any layer, few-shot, probes, aggregation."""
