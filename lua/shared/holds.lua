-- holds: whether a key is absent or of the type that a verb is about to write (a script has no rollback).
local function holds(key, wanted)
  local kind = redis.call('TYPE', key).ok
  return kind == wanted or kind == 'none'
end
