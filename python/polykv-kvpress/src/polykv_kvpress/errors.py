"""The error that this package raises for everything that it refuses."""


class PlanError(ValueError):
    """Something that is refused. The text names what it is about, the value found and the values allowed.

    `field` is what is wrong (such as `budget.ratio` or `prefill policy of layer 3`), `found` the value there, `allowed` what
    may be there instead; all three are text.
    """

    def __init__(self, field: str, found: object, allowed: object, place: str = "plan") -> None:
        self.place, self.field = place, field
        self.found, self.allowed = str(found), str(allowed)
        super().__init__(f"{place}: {field} is {self.found}; allowed: {self.allowed}")

    def at(self, place: str) -> "PlanError":
        """The same error about another place, such as the name of a file."""
        return PlanError(self.field, self.found, self.allowed, place)
