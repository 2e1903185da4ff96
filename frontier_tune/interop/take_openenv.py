"""An OpenEnv server's environment as a workflow: ``frontier_tune.interop.take_openenv:OpenEnvWorkflow`` in a recipe.

Speaks the server's WebSocket protocol (``/ws``: reset, step, state, close), since over plain HTTP each request has an environment
of its own and no episode goes beyond one step. OpenEnv itself is not needed here.
"""

from __future__ import annotations

import asyncio
import json
import math
import threading
from collections.abc import Coroutine, Sequence
from typing import Any, Literal

from frontier_tune.contracts import BadInput, Blame, EpisodeFailed, Failure
from frontier_tune.interop.schema import add_tool, arguments_for, shown, signature_of
from frontier_tune.sdk import Grade, Message, Task, ToolError, WorkflowEnv


class OpenEnvWorkflow(WorkflowEnv):
    """Plays the environment at ``url`` (``http://host:8000``), one session for as long as the workflow lives.

    Tools: an environment of MCP tools gives its own; any other gets one, ``act``, with the fields of its action. The reward is
    the sum over the episode; success is a sum of at least ``success_at``. A task is a seed; no seed is in both splits.

    Args:
        instruction: what the agent is told before the first observation. ``observation``: the field of observations that is shown
            (default: the only text, else all of it as JSON). ``timeout_s``: for one answer of the server.
    """

    name = "openenv"

    def __init__(
        self, url: str, instruction: str, success_at: float, observation: str | None = None, timeout_s: float = 60.0
    ) -> None:
        self.url, self.instruction, self.success_at, self.observation = url.rstrip("/"), instruction, success_at, observation
        self.server = _Server(self.url, timeout_s)
        try:
            self._take_actions()
        except BaseException as e:
            self.server.close()
            if isinstance(e, EpisodeFailed):
                raise BadInput(f"OpenEnv server {self.url}: {e.failure.detail}; is it an OpenEnv server?") from None
            raise

    def tasks(self, split: Literal["train", "heldout"], n: int, seed: int) -> list[Task]:
        first = seed % 1_000_000 * 1000
        return [Task(self.title, split, {"env": self.title, "seed": 2 * (first + i) + (split == "heldout")}) for i in range(n)]

    def begin(self, task: Task) -> Sequence[Message]:
        self.total = 0.0
        opened = self._ask({"type": "reset", "data": {"seed": task.data["seed"]}})
        return [Message("user", f"{self.instruction}\n{shown(opened.get('observation'), self.observation)}")]

    def grade(self) -> Grade:
        if not math.isfinite(self.total):
            raise ValueError(f"the rewards of {self.title} sum to {self.total}")
        return Grade(self.total, self.total >= self.success_at, {"reward": self.total})

    def close(self) -> None:
        self.server.close()

    def _take_actions(self) -> None:
        schema = self.server.get("/schema").get("action")
        if not isinstance(schema, dict):
            raise BadInput(f"OpenEnv server {self.url}: its /schema tells of no action; is it an OpenEnv server?")
        self.title = str(self.server.get("/metadata").get("name", self.url))
        fields = {name: kind for name, kind in schema.get("properties", {}).items() if name != "metadata"}
        if not fields or "tool_name" in fields:
            self._take_tools()
        else:
            schema = {**schema, "properties": fields}
            signature = signature_of("act", "Take one action.", schema)
            add_tool(self, signature, lambda given: self._step(arguments_for(signature, given)))

    def _take_tools(self) -> None:
        answer = self._ask({"type": "step", "data": {"type": "list_tools"}})
        listed = (answer.get("observation") or {}).get("tools")
        if not listed:
            raise BadInput(f"OpenEnv environment {self.url} has neither an action nor tools")
        for tool in listed:
            self._take_tool(tool["name"], tool.get("description", ""), tool.get("input_schema") or tool.get("inputSchema") or {})

    def _take_tool(self, name: str, description: str, schema: dict[str, Any]) -> None:
        signature = signature_of(name, description, schema)
        add_tool(self, signature, lambda given: self._call(name, arguments_for(signature, given)))

    def _call(self, tool: str, arguments: dict[str, Any]) -> str:
        observation = self._after({"type": "call_tool", "tool_name": tool, "arguments": arguments})
        if error := observation.get("error"):
            raise ToolError(str(error.get("message", error)) if isinstance(error, dict) else str(error))
        result = observation.get("result")
        return shown(result.get("data", result) if isinstance(result, dict) else result, self.observation)

    def _step(self, action: dict[str, Any]) -> str:
        return shown(self._after(action), self.observation)

    def _after(self, action: dict[str, Any]) -> dict[str, Any]:
        answer = self._ask({"type": "step", "data": action})
        self.total += float(answer.get("reward") or 0.0)
        if answer.get("done"):
            self.finish()
        return answer.get("observation") or {}

    def _ask(self, message: dict[str, Any]) -> dict[str, Any]:
        """The data of the server's answer. Its errors: ToolError where it refused the action, else a failure with its blame."""
        answer = self.server.ask(message)
        if answer.get("type") != "error":
            return answer["data"]
        told, code = answer["data"].get("message", "no message"), answer["data"].get("code", "UNKNOWN")
        if code == "VALIDATION_ERROR" and message["type"] == "step":
            reasons = "; ".join(str(e.get("msg", e)) for e in answer["data"].get("errors", ()))
            raise ToolError(f"{told}: {reasons}" if reasons else told)
        blame = Blame.ENVIRONMENT if code == "EXECUTION_ERROR" else Blame.INFRASTRUCTURE
        raise EpisodeFailed(Failure(f"openenv-{code.lower().replace('_', '-')}", blame, f"{self.url}: {told}"))


class _Server:
    """One WebSocket session, on an event loop in a thread of its own, so that callers need none."""

    def __init__(self, url: str, timeout_s: float) -> None:
        if not url.startswith(("http://", "https://")):
            raise BadInput(f"OpenEnv url '{url}': write it like http://localhost:8000")
        self.url, self.timeout_s = url, timeout_s
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._http: Any = None
        self._socket: Any = None

    def get(self, path: str) -> dict[str, Any]:
        """A GET as JSON. Raises BadInput where there is no such server: it is asked for when the environment is made."""
        try:
            return self._run(self._get(path))
        except EpisodeFailed as e:
            self.close()
            raise BadInput(f"OpenEnv server {self.url}: no {path}: {e.failure.detail}; is it running?") from None

    def ask(self, message: dict[str, Any]) -> dict[str, Any]:
        """One message and its answer; a session that was lost is opened again by the next reset."""
        return self._run(self._ask(message))

    def close(self) -> None:
        if self._loop.is_running():
            asyncio.run_coroutine_threadsafe(self._close(), self._loop).result(self.timeout_s)
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    def _run(self, coroutine: Coroutine[Any, Any, dict[str, Any]]) -> dict[str, Any]:
        import aiohttp

        try:
            return asyncio.run_coroutine_threadsafe(asyncio.wait_for(coroutine, self.timeout_s), self._loop).result()
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as e:
            lost, self._socket = self._socket, None
            if lost is not None:
                asyncio.run_coroutine_threadsafe(lost.close(), self._loop)
            told = f"no answer in {self.timeout_s:g} s" if isinstance(e, TimeoutError) else f"{type(e).__name__}: {e}"
            raise EpisodeFailed(Failure("openenv-connection", Blame.INFRASTRUCTURE, f"{self.url}: {told}")) from None

    async def _client(self) -> Any:
        import aiohttp

        self._http = self._http or aiohttp.ClientSession()
        return self._http

    async def _get(self, path: str) -> dict[str, Any]:
        async with (await self._client()).get(self.url + path) as response:
            response.raise_for_status()
            found = await response.json()
            return found if isinstance(found, dict) else {}

    async def _ask(self, message: dict[str, Any]) -> dict[str, Any]:
        import aiohttp

        if self._socket is None or self._socket.closed:
            if message["type"] == "step" and message["data"].get("type") != "list_tools":
                raise ConnectionError("the session was lost in mid-episode")
            self._socket = await (await self._client()).ws_connect(self.url + "/ws", max_msg_size=100 << 20)
        await self._socket.send_str(json.dumps(message))
        answer = await self._socket.receive()
        if answer.type is not aiohttp.WSMsgType.TEXT:
            raise ConnectionError(f"the server ended the session ({answer.type.name})")
        return json.loads(answer.data)

    async def _close(self) -> None:
        if self._socket is not None and not self._socket.closed:
            await self._socket.send_str('{"type": "close"}')
            await self._socket.close()
        if self._http is not None:
            await self._http.close()
