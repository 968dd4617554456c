-- Asks authsidecar about a request: `http-request lua.authsidecar` in haproxy.cfg.
--
-- Admitted: the request has the sidecar's X-Auth-* headers, and var(txn.authorized) is true.
-- Refused: the client has the sidecar's answer, and no later rule runs.
-- Anything else (no answer, a late one, rubbish): var(txn.authorized) is not there, and haproxy.cfg
-- answers 503 itself. So does an error in this file: HAProxy goes on to the next rule.

-- `listen authsidecar` of haproxy.cfg, which knows the sidecar's address and the time limits.
local ASK = "abns@authsidecar"

-- More than any limit in there: the client in HAProxy's Lua would ask again, three times.
local PATIENCE_MS = 10000

-- The sidecar's own stay under 4 KB; a refusal has to fit HAProxy's buffer.
local LONGEST_BODY = 8192

-- What the sidecar may read of what the client says.
local SHOWN = {
  "authorization", "origin", "access-control-request-method", "content-type", "x-http-method-override",
  "traceparent",
}

-- What a client is shown of an admission, by the name of its variable in haproxy.cfg.
local COUNT = {
  ["x-ratelimit-limit"] = "txn.authz_limit",
  ["x-ratelimit-remaining"] = "txn.authz_remaining",
  ["ratelimit"] = "txn.authz_ratelimit",
  ["ratelimit-policy"] = "txn.authz_ratelimit_policy",
  ["x-token-valid-until"] = "txn.authz_valid_until",
}

-- What HAProxy says itself of an answer that it writes.
local NOT_COPIED = { ["connection"] = true, ["content-length"] = true, ["keep-alive"] = true, ["transfer-encoding"] = true }

-- The values of a header; HAProxy's own lists begin at 0.
local function values(headers, name)
  local list, found = headers[name], {}
  for n = 0, list and #list or -1 do found[#found + 1] = list[n] end
  return found
end

-- The question: nothing of it is the client's but the request itself and SHOWN.
local function question(txn)
  local headers = {
    ["host"] = { "authsidecar" },
    ["x-forwarded-method"] = { txn.sf:method() },
    ["x-forwarded-uri"] = { txn.sf:pathq() },
    ["x-forwarded-for"] = { txn.sf:src() },
    ["x-forwarded-host"] = { txn.sf:req_hdr("host") },
    ["x-forwarded-proto"] = { txn.sf:ssl_fc() == "1" and "https" or "http" },
    ["x-authz-request-id"] = { txn.sf:uuid() }, -- counted once, however often it is asked
  }
  local said = txn.http:req_get_headers()
  for _, name in ipairs(SHOWN) do
    local list = values(said, name)
    if #list > 0 then headers[name] = list end
  end
  return headers
end

local function admit(txn, answer)
  for name, list in pairs(answer.headers) do
    if name:find("^x%-auth%-") then txn.http:req_set_header(name, list[0]) end
    if COUNT[name] then txn:set_var(COUNT[name], list[0]) end
  end
  txn:set_var("txn.authorized", true)
end

local function refuse(txn, answer)
  local reply = txn:reply({ status = answer.status, reason = answer.reason, body = answer.body })
  for name in pairs(answer.headers) do
    if not NOT_COPIED[name] and not name:find("^x%-auth") then
      for _, value in ipairs(values(answer.headers, name)) do reply:add_header(name, value) end
    end
  end
  txn:done(reply)
end

-- Whether these are the sidecar's own words: JSON, whole.
local function is_refusal(answer)
  local status, length = answer.status, tonumber(values(answer.headers, "content-length")[1])
  return (status >= 400 and status < 500 or status == 503)
    and values(answer.headers, "content-type")[1]:find("^application/json") ~= nil
    and length == #answer.body and length <= LONGEST_BODY
end

core.register_action("authsidecar", { "http-req" }, function(txn)
  local answer = core.httpclient():get({
    url = "http://authsidecar/authz/haproxy", dst = ASK, headers = question(txn), timeout = PATIENCE_MS,
  })
  if answer.status == 200 and #values(answer.headers, "x-auth-decision-id") == 1 then
    admit(txn, answer)
  elseif is_refusal(answer) then
    refuse(txn, answer)
  end
end)
