"""A host of twenty MCP servers: `pip install mcp`, `rebeam up app.py`, and in another terminal

rebeam call host use tools0 add '{"a": 1, "b": 2}'
rebeam call --timeout 60 host use tools1 hang
rebeam call host use tools2 crash
"""

import sys
from pathlib import Path
from typing import Any

import rebeam
from rebeam import Actor, ProgramRef, Supervisor, child, program

COUNT = 20
HELLO = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "host", "version": "1.0"}}


class ToolError(Exception):
    """A tool has failed, which is something to tell the model, and no reason to stop."""


class Host(Actor):
    """Uses tools for whoever asks. While one hangs, others go on: an `async def` method waits on its own."""

    async def tools(self, server: str) -> list[str]:
        answer = await ProgramRef(server).acall("tools/list", {}, timeout=10)
        return [tool["name"] for tool in answer["tools"]]

    @rebeam.raises(ToolError)
    async def use(self, server: str, tool: str, arguments: dict[str, Any] | None = None) -> str:
        params = {"name": tool, "arguments": arguments or {}}
        try:
            answer = await ProgramRef(server).acall("tools/call", params, timeout=30)
        except rebeam.CallTimeout as error:
            # The server has been told that nobody waits any more. Ours does not listen, so it has to go.
            rebeam.kill(ProgramRef(server))
            raise ToolError(f"`{tool}` hangs: {error}") from None
        except rebeam.ActorDied as error:
            raise ToolError(f"`{tool}` has taken its server down: {error}") from None
        return "".join(part["text"] for part in answer["content"] if part["type"] == "text")


command = [sys.executable, str(Path(__file__).parent / "server.py")]
servers = [program(command, name=f"tools{n}", stdio="jsonrpc", initialize=HELLO, idle=60) for n in range(COUNT)]
tree = Supervisor([*servers, child(Host, name="host", concurrency=100)], max_restarts=100)
