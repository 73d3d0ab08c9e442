-- For wrk: asks for PAGE, with a connection for each request if CLOSE is set, and compares every answer with the file
-- EXPECTED. After 20 answers on one thread the file ENOUGH is made, if that is set.
local path, expected = os.getenv("PAGE"), io.open(os.getenv("EXPECTED"), "rb"):read("*a")
local headers = { ["Connection"] = os.getenv("CLOSE") and "close" or "keep-alive" }
local enough = os.getenv("ENOUGH")
local threads = {}
function setup(thread) table.insert(threads, thread) end
function init() wrong, right = 0, 0 end
function request() return wrk.format("GET", path, headers) end
function response(status, _, body)
    if status == 200 and body == expected then right = right + 1 else wrong = wrong + 1 end
    if right + wrong == 20 and enough then io.open(enough, "w"):close() end
end
function done(summary)
    local total, bad, e = 0, 0, summary.errors
    for _, thread in ipairs(threads) do total, bad = total + thread:get("right"), bad + thread:get("wrong") end
    io.write(string.format("answers %d wrong %d connect %d read %d write %d timeout %d status %d\n",
        total, bad, e.connect, e.read, e.write, e.timeout, e.status))
end
