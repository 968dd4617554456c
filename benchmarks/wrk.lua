-- Sends the requests of a file in turn; the file holds them separated by a NUL byte. In place of
-- {number} each has another number, from the second argument on.
local requests, rests = {}, {}
local at, number = 0, 0

function init(args)
  local file = assert(io.open(args[1], "rb"))
  for request in file:read("*a"):gmatch("[^%z]+") do
    local head, rest = request:match("^(.-){number}(.*)$")
    requests[#requests + 1] = head or request
    rests[#requests] = rest
  end
  file:close()
  -- Doubles count to 2^53: microseconds and a running number still do.
  number = math.floor(tonumber(args[2]) / 1000)
end

function request()
  at = at % #requests + 1
  if not rests[at] then return requests[at] end
  number = number + 1
  return requests[at] .. string.format("%d", number) .. rests[at]
end

function done(summary, latency)
  io.write(string.format("RESULT %d %d %d %d %d\n", summary.requests, summary.duration,
    latency:percentile(50), latency:percentile(99),
    summary.errors.connect + summary.errors.read + summary.errors.write + summary.errors.timeout))
  io.write(string.format("STATUS %d\n", summary.errors.status))
end
