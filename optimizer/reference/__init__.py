"""The full model in Pyomo, solved by SCIP: slow, trusted, with none of the theory behind the other methods."""
