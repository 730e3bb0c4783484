"""The full model in Pyomo, solved by SCIP: slow, trusted, and with none of the theory that the other methods rest on."""
