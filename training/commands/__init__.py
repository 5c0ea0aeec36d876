"""The commands of attnops.training: a module with `main(arguments) -> exit status` each."""
