"""Pure decisions: what tasks cost, whether parallelism pays, which worker gets what."""
