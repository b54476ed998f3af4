%% The Erlang peer of `peers.py`: the same work on two nodes over loopback, which is how Erlang isolates actors in
%% processes of the system. Prints one line of JSON. Nothing is killed here: within a node a process is not isolated,
%% and nobody starts a killed node again.
-module(peers).
-export([main/0, loop/1]).
-define(CALLS, 2000).
-define(CASTS, 5000).
-define(ACTORS, 10).

main() ->
    os:cmd("epmd -daemon"),
    {ok, _} = net_kernel:start([list_to_atom("bench" ++ os:getpid() ++ "@127.0.0.1"), longnames]),
    {ok, Peer, Node} = peer:start(#{
        name => peer:random_name(), host => "127.0.0.1", longnames => true,
        args => ["-pa", filename:dirname(code:which(?MODULE))]
    }),
    Echo = spawn(Node, ?MODULE, loop, [0]),
    Times = lists:sort([timed(fun() -> call(Echo, echo, #{n => 1}) end) || _ <- lists:seq(1, ?CALLS)]),
    Casts = timed(fun() -> [Echo ! {note, #{n => 1}} || _ <- lists:seq(1, ?CASTS)], call(Echo, noted, none) end),
    Starts = timed(fun() ->
        Actors = [spawn(Node, ?MODULE, loop, [0]) || _ <- lists:seq(1, ?ACTORS)],
        [call(Actor, echo, 1) || Actor <- Actors]
    end),
    io:format(
        "{\"call p50, \\u00b5s\": ~p, \"call p99, \\u00b5s\": ~p, \"casts, /s\": ~p, \"start of each, ms\": ~p}~n",
        [lists:nth(?CALLS div 2, Times), lists:nth(?CALLS * 99 div 100, Times), ?CASTS / Casts * 1.0e6, Starts / ?ACTORS / 1000]
    ),
    peer:stop(Peer),
    halt().

%% Microseconds.
timed(Work) ->
    Started = erlang:monotonic_time(),
    Work(),
    erlang:convert_time_unit(erlang:monotonic_time() - Started, native, nanosecond) / 1000.

%% As `gen_server:call` does it: a monitor, a request with its reference, the answer or the end.
call(Actor, Method, Message) ->
    Reference = monitor(process, Actor),
    Actor ! {Method, {self(), Reference}, Message},
    receive
        {Reference, Answer} -> demonitor(Reference, [flush]), Answer;
        {'DOWN', Reference, _, _, Reason} -> exit(Reason)
    end.

loop(Count) ->
    receive
        {echo, {From, Reference}, Message} -> From ! {Reference, Message}, loop(Count);
        {note, _} -> loop(Count + 1);
        {noted, {From, Reference}, _} -> From ! {Reference, Count}, loop(Count)
    end.
