"""What is done with a network: batches, hooks, recording and resuming, masks, surgery, twins, outputs, costs."""
