-- The exact sliding window over a Redis LIST of admission times in milliseconds, oldest first:
-- ten bytes an admission, one push for an admitted request, nothing for a refused one.
-- sliding_window.py is the model; tests/property holds the two together.
-- What a command is given is text where it can be: Redis needs as long to write a number as text
-- as it needs for the command.
local call = redis.call

-- What the counter `key` says at `now`: fits, remaining, reset_at. Forgets what left the window.
local function count(key, limit, window, now)
  local newest = call('LINDEX', key, '-1')
  if not newest then return true, limit, now + window end
  if tonumber(newest) > now then
    -- Time ran backwards: what lies in the future counts from now on.
    local times = call('LRANGE', key, '0', '-1')
    for i = 1, #times do
      if tonumber(times[i]) > now then call('LSET', key, i - 1, now) end
    end
    call('PEXPIRE', key, window)
  end
  local oldest = call('LINDEX', key, '0')
  while oldest and oldest + window <= now do
    call('LPOP', key)
    oldest = call('LINDEX', key, '0')
  end
  if not oldest then return true, limit, now + window end
  local used = call('LLEN', key)
  if used < limit then return true, limit - used, oldest + window end
  if used > limit then oldest = call('LINDEX', key, used - limit) end
  return false, 0, oldest + window
end

-- Charges one unit at `now`; the list outlives its last admission by `ttl` milliseconds. Both are
-- text.
local function record(key, now, ttl)
  call('RPUSH', key, now)
  call('PEXPIRE', key, ttl)
end
