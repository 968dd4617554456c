-- Charges a batch of requests, each to all of its counters or to none, and validates in the
-- same trip that the records they were judged by are still current.
--
-- ARGV[1]  the time in milliseconds, '' for Redis's own clock (anything else: tests only)
-- then, for each request, in step with its KEYS:
--   its form, as JSON: [P, D, M, limit, window, limit, window, ...], with
--     P  number of proofs             KEYS: P keys of nonces or hashes
--     D  milliseconds that a repeat of the same request id is free, 0: no id, no key
--                                     KEYS: one marker key if D > 0
--     M  1 to charge, 0 to look and charge nothing
--     limit, window                   KEYS: for each pair a list, or the number of a budget
--        the window is in milliseconds; 0: a budget, which only counts up
--   P values  the nonces expected; of a hash ' field', a field and its value, '' if there is none
--
-- Returns now, then for each request: {status, stale, remaining, reset_at, remaining, ...}
-- with status 0 stale (stale: a bit for each proof that failed), 1 admitted, 2 refused,
-- 3 a repeat: counted once already, charged nothing.
local KEYS, ARGV = KEYS, ARGV
local now = tonumber(ARGV[1])
local least_ttl = now and 3600000 or 0  -- keys expire by Redis's clock, injected time has its own
if not now then
  local time = call('TIME')
  now = time[1] * 1000 + math.floor(time[2] / 1000)
end

local function text(number) return string.format('%.0f', number) end
local now_text = text(now)

-- What a budget says: fits, remaining, reset_at. One that is missing has nothing left.
local function left(key, limit, now)
  local used = tonumber(call('GET', key) or limit)
  return used < limit, math.max(0, limit - used), now
end

-- Requests share forms and proofs: each is read once in a call. No proof changes within one.
local forms, proven = {}, {}

local function read_form(json)
  local form = cjson.decode(json)
  form.free = text(math.max(form[2], least_ttl))
  form.ttl = {}
  for i = 5, #form, 2 do form.ttl[i] = text(math.max(form[i], least_ttl)) end
  forms[json] = form
  return form
end

local results = { now }
local k, a, last = 0, 1, #ARGV
while a < last do
  a = a + 1
  local form = forms[ARGV[a]] or read_form(ARGV[a])
  local stale = 0
  local bit = 1
  for _ = 1, form[1] do
    k = k + 1
    a = a + 1
    local proof, expected, found = KEYS[k], ARGV[a], nil
    if expected == ' field' then
      found = call('HGET', proof, ARGV[a + 1]) or ''
      expected = ARGV[a + 2]
      a = a + 2
    else
      -- A missing nonce is false here, which equals no text: missing means stale.
      found = proven[proof]
      if found == nil then
        found = call('GET', proof)
        proven[proof] = found
      end
    end
    if found ~= expected then stale = stale + bit end
    bit = bit * 2
  end
  local marker
  if form[2] > 0 then
    k = k + 1
    marker = KEYS[k]
  end

  -- A counter's pair is at i - 1 and i of its form, and of its answer one place before.
  local result = { 0, stale }
  local first = k
  k = k + (#form - 3) / 2
  if stale == 0 then
    local fits = true
    local at = first
    for i = 5, #form, 2 do
      at = at + 1
      local one, remaining, reset_at
      if form[i] > 0 then
        one, remaining, reset_at = count(KEYS[at], form[i - 1], form[i], now)
      else
        one, remaining, reset_at = left(KEYS[at], form[i - 1], now)
      end
      fits = fits and one
      result[i - 2] = remaining
      result[i - 1] = reset_at
    end
    if marker and call('EXISTS', marker) == 1 then
      result[1] = 3
    elseif not fits then
      result[1] = 2
    else
      result[1] = 1
      if form[3] == 1 then
        at = first
        for i = 5, #form, 2 do
          at = at + 1
          result[i - 2] = result[i - 2] - 1
          if form[i] > 0 then
            record(KEYS[at], now_text, form.ttl[i])
          else
            call('INCR', KEYS[at])
          end
        end
        if marker then call('SET', marker, '', 'PX', form.free) end
      end
    end
  end
  results[#results + 1] = result
end
return results
