-- Makes a change as MULTI does, where Redis is full and refuses the MULTI.
--
-- KEYS[1]  a key of the same slot that is never there
-- then the keys that decided what is written, then the key of each command
--
-- ARGV[1]  how many keys decided
-- then, for each of them, the SHA-1 of its DUMP when it was read, '' for none
-- then, for each command: its name, how many words follow its key, and these
--
-- Returns what each command answers, or nil, and nothing was done: a key is not as it was.
local k, a = 1, 1
local function key() k = k + 1; return KEYS[k] end
local function arg() a = a + 1; return ARGV[a] end

for _ = 1, tonumber(ARGV[1]) do
  local dump = redis.call('DUMP', key())
  if (dump and redis.sha1hex(dump) or '') ~= arg() then return false end
end

-- Redis asks for room up to a script's first write alone. A deletion needs none, whatever it finds.
redis.call('DEL', KEYS[1])

local answers = {}
while a < #ARGV do
  local name, words = arg(), tonumber(arg())
  answers[#answers + 1] = redis.call(name, key(), unpack(ARGV, a + 1, a + words))
  a = a + words
end
return answers
