-- Writes tokens first, first + 1, ... as Registry.put_tokens does, one for each digest.
-- ARGV: prefix, first, users, users a team, created_at, expires_at, kept until, digests...
local prefix, first, users, per_team = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
for i = 8, #ARGV do
  local id = string.format('%d', first + i - 8)
  local user = string.format('%d', id % users + 1)
  local team = string.format('%d', math.floor((user - 1) / per_team))
  local key = prefix .. 'token:' .. id
  redis.call('HSET', key, 'sha256', ARGV[i], 'name', 'token ' .. id, 'user', user,
    'permissions', 'read', 'created_at', ARGV[5], 'team', team, 'expires_at', ARGV[6])
  redis.call('PEXPIREAT', key, ARGV[7])
  redis.call('ZADD', prefix .. 'expiring', ARGV[6], id)
  redis.call('SADD', prefix .. 'user:' .. user .. ':tokens', id)
  redis.call('SADD', prefix .. 'team:' .. team .. ':tokens', id)
end
