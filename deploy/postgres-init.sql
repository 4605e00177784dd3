-- A database of its own for MLflow: it and Optuna keep their schema's version in a table of the same name.
create database mlflow owner lorasweep;
