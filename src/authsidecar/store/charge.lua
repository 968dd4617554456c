-- Charges a batch of requests, each to all of its counters or to none, and validates in the
-- same trip that the records they were judged by are still current.
--
-- ARGV[1]  the time in milliseconds, '' for Redis's own clock (anything else: tests only)
-- then, for each request, in step with its KEYS:
--   P             number of proofs          KEYS: P keys of nonces or hashes
--   P values      the nonces expected; of a hash ' field', a field and its value, '' if there is none
--   D             milliseconds that a repeat of the same request id is free, 0: no id, no key
--                                           KEYS: one marker key if D > 0
--   M             'charge', or 'peek' to look and charge nothing
--   C             number of counters        KEYS: C lists, or numbers of budgets
--   C pairs       limit, window in milliseconds; 0: a budget, which only counts up
--
-- Returns now, then for each request: {status, stale, remaining, reset_at, remaining, ...}
-- with status 0 stale (stale: a bit for each proof that failed), 1 admitted, 2 refused,
-- 3 a repeat: counted once already, charged nothing.
local now = tonumber(ARGV[1])
local least_ttl = now and 3600000 or 0  -- keys expire by Redis's clock, injected time has its own
if not now then
  local time = redis.call('TIME')
  now = time[1] * 1000 + math.floor(time[2] / 1000)
end

local k, a = 0, 1
local function key() k = k + 1; return KEYS[k] end
local function arg() a = a + 1; return ARGV[a] end

-- What a budget says: fits, remaining, reset_at. One that is missing has nothing left.
local function left(key, limit, now)
  local used = tonumber(redis.call('GET', key) or limit)
  return used < limit, math.max(0, limit - used), now
end

local results = { now }
while a < #ARGV do
  local stale = 0
  local bit = 1
  for _ = 1, tonumber(arg()) do
    local proof, expected, found = key(), arg(), nil
    if expected == ' field' then
      found = redis.call('HGET', proof, arg()) or ''
      expected = arg()
    else
      -- A missing nonce is false here, which equals no text: missing means stale.
      found = redis.call('GET', proof)
    end
    if found ~= expected then stale = stale + bit end
    bit = bit * 2
  end
  local free = tonumber(arg())
  local marker = free > 0 and key()
  local charging = arg() == 'charge'
  local counters = {}
  for i = 1, tonumber(arg()) do
    counters[i] = { key = key(), limit = tonumber(arg()), window = tonumber(arg()) }
  end

  local result = { 0, stale }
  if stale == 0 then
    local fits = true
    local answers = {}
    for i, c in ipairs(counters) do
      local one, remaining, reset_at
      if c.window > 0 then
        one, remaining, reset_at = count(c.key, c.limit, c.window, now)
      else
        one, remaining, reset_at = left(c.key, c.limit, now)
      end
      fits = fits and one
      answers[i] = { remaining, reset_at }
    end
    local repeated = marker and redis.call('EXISTS', marker) == 1
    if repeated then
      result[1] = 3
    elseif not fits then
      result[1] = 2
    else
      result[1] = 1
      if charging then
        for i, c in ipairs(counters) do
          if c.window > 0 then
            record(c.key, now, math.max(c.window, least_ttl))
          else
            redis.call('INCR', c.key)
          end
          answers[i] = { answers[i][1] - 1, answers[i][2] }
        end
        if marker then redis.call('SET', marker, '', 'PX', math.max(free, least_ttl)) end
      end
    end
    for _, answer in ipairs(answers) do
      result[#result + 1] = answer[1]
      result[#result + 1] = answer[2]
    end
  end
  results[#results + 1] = result
end
return results
