"""What the models of `with` have in common."""

from pydantic import BaseModel, ConfigDict


class Params(BaseModel):
    """Parameters of a task: a key that is not known is an error, and no error shows a value."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True, allow_inf_nan=False)

    def __repr__(self) -> str:
        """The type alone: a value may be a secret."""
        return f"{type(self).__name__}(…)"

    def __str__(self) -> str:
        return repr(self)
