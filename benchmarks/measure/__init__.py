"""How things are measured: time, memory, the floor, agreement of outputs, backends that ran."""
