-- holds: whether a key is absent or of the type that a verb is about to write (a script has no rollback). Each key is
-- looked at once: the listings of many runs are the same.
local held = {}
local function holds(key, wanted)
  if held[key] == wanted then return true end
  local kind = redis.call('TYPE', key).ok
  if kind ~= wanted and kind ~= 'none' then return false end
  held[key] = wanted
  return true
end
