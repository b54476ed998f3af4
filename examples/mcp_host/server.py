"""An MCP server as they come: one of its tools works, one hangs, and one takes the process down."""

import ctypes
import time

from mcp.server.mcpserver import MCPServer

server = MCPServer("tools")


@server.tool()
def add(a: int, b: int) -> int:
    """Adds two numbers."""
    return a + b


@server.tool()
def hang() -> str:
    """Does not come back."""
    time.sleep(3600)
    return "never"


@server.tool()
def crash() -> str:
    """Reads memory that is not there, as a faulty native library would."""
    ctypes.string_at(0)
    return "never"


server.run()
