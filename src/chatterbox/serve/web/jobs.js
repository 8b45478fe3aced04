// Long texts that are spoken while nobody waits: the list of them, how far each is, and what can be done with it.

const PAUSE = 2000; // ms between two looks at what is under way
const WORDS = { queued: "waits", running: "is spoken", paused: "is paused", completed: "is ready", failed: "has failed" };
const PATH = "v1/audio/speech/long";

/** `list`: where jobs are shown; `none`: what says that there is none. `ask` and `tell` are the page's. */
export function jobs({ list, none, ask, tell }) {
  const shown = new Map(); // rows by the job's id
  let timer = null;

  async function look() {
    clearTimeout(timer);
    const { jobs: found } = await (await ask(PATH)).json();
    none.hidden = found.length > 0;
    for (const [id, row] of shown) if (!found.some((job) => job.job_id === id)) { row.remove(); shown.delete(id); }
    for (const job of found) list.append(show(job));
    if (found.some(({ status }) => status === "queued" || status === "running")) timer = setTimeout(again, PAUSE);
  }

  const again = () => look().catch(() => { timer = setTimeout(again, PAUSE); }); // the server may be starting again

  function show(job) {
    const row = shown.get(job.job_id) ?? made(job);
    shown.set(job.job_id, row);
    const parts = `${job.completed_chunks} of ${job.total_chunks} parts, ${job.duration_seconds.toFixed(1)} s`;
    row.querySelector("span").textContent = `${WORDS[job.status]}: ${job.error ?? parts}`;
    row.querySelector("progress").value = job.progress;
    for (const button of row.querySelectorAll("button")) button.hidden = !button.dataset.of.split(" ").includes(job.status);
    return row;
  }

  function made(job) {
    const row = document.createElement("li");
    const began = new Date(job.created_at * 1000).toLocaleString();
    const name = Object.assign(document.createElement("span"), { role: "status" });
    const progress = Object.assign(document.createElement("progress"), { max: 1, ariaLabel: `How far the text of ${began} is` });
    const act = (path, method) => async () => { await ask(`${PATH}/${job.job_id}${path}`, { method }); await look(); };
    row.append(
      Object.assign(document.createElement("strong"), { textContent: began }), name, progress,
      button("Pause", "queued running", act("/pause", "PUT")),
      button("Go on", "paused failed", act("/resume", "PUT")),
      button("Download", "completed", () => download(job)),
      button("Remove", Object.keys(WORDS).join(" "), act("", "DELETE")),
    );
    return row;
  }

  function button(title, of, does) {
    const one = Object.assign(document.createElement("button"), { type: "button", className: "quiet", textContent: title });
    one.dataset.of = of;
    one.addEventListener("click", () => does().catch((error) => tell(error.message, true)));
    return one;
  }

  async function download(job) {
    const audio = await (await ask(`${PATH}/${job.job_id}/download`)).blob();
    const link = Object.assign(document.createElement("a"), { href: URL.createObjectURL(audio), download: `speech.${job.response_format}` });
    link.click();
    URL.revokeObjectURL(link.href);
  }

  /** A new one of a request's body. */
  async function add(body) {
    const headers = { "content-type": "application/json" };
    const { warnings } = await (await ask(PATH, { method: "POST", headers, body })).json();
    tell(["The text is spoken as a job, see Long texts", ...warnings].join(". "));
    await look();
  }

  return { look: again, add };
}
