"""The built-in task types, one module each; `app.adapters.tasks.registry` names them."""
