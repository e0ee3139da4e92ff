"""The view of the supervisor, for its child that holds the API port."""

import httpx

from app.http import problems
from app.http.health import Part
from app.http.view import JSON, PATHS, Answer, LocalView


class ForwardView:
    """The view of the supervisor at `url`, for its child that holds the API port."""

    def __init__(self, url: str, local: LocalView, timeout_s: float = 3.0) -> None:
        self._local = local
        # Proxies of the environment have no business between two loopback processes.
        self._client = httpx.AsyncClient(base_url=url, timeout=timeout_s, trust_env=False)

    async def close(self) -> None:
        await self._client.aclose()

    async def health(self, part: Part) -> Answer:
        if part == "live":  # whether this very loop turns is nobody else's to say
            return await self._local.health(part)
        return await self._get(PATHS[part])

    async def metrics(self, accept: str) -> Answer:
        return await self._get("/metrics", accept)

    async def config(self) -> Answer:
        return await self._get("/config")

    async def ledger(self) -> Answer:
        return await self._get("/ledger")

    async def _get(self, path: str, accept: str = "*/*") -> Answer:
        try:
            found = await self._client.get(path, headers={"Accept": accept})
        except httpx.HTTPError as error:
            detail = f"The supervisor does not answer: {type(error).__name__}."
            return Answer(503, problems.document(503, detail, path), problems.CONTENT_TYPE)
        return Answer(found.status_code, found.content, found.headers.get("content-type", JSON))
