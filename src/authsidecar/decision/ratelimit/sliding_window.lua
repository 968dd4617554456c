-- The exact sliding window over a Redis LIST of admission times in milliseconds, oldest first:
-- ten bytes an admission, one push for an admitted request, nothing for a refused one.
-- sliding_window.py is the model; tests/property holds the two together.

-- What the counter `key` says at `now`: fits, remaining, reset_at. Forgets what left the window.
local function count(key, limit, window, now)
  local newest = redis.call('LINDEX', key, -1)
  if newest and tonumber(newest) > now then
    -- Time ran backwards: what lies in the future counts from now on.
    local times = redis.call('LRANGE', key, 0, -1)
    for i = 1, #times do
      if tonumber(times[i]) > now then redis.call('LSET', key, i - 1, now) end
    end
    redis.call('PEXPIRE', key, window)
  end
  local oldest = redis.call('LINDEX', key, 0)
  while oldest and oldest + window <= now do
    redis.call('LPOP', key)
    oldest = redis.call('LINDEX', key, 0)
  end
  if not oldest then return true, limit, now + window end
  local used = redis.call('LLEN', key)
  if used < limit then return true, limit - used, oldest + window end
  if used > limit then oldest = redis.call('LINDEX', key, used - limit) end
  return false, 0, oldest + window
end

-- Charges one unit; the list outlives its last admission by `ttl` milliseconds.
local function record(key, now, ttl)
  redis.call('RPUSH', key, now)
  redis.call('PEXPIRE', key, ttl)
end
