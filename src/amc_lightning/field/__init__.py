"""AMC among the other defences against several attacks: one table, one picture, one answer, from run folders alone."""
