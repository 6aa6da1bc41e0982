/* Browsers refuse workers to pages that are opened from the disk. There, Material's search runs in a frame instead, which
   talks to the page as a worker would. */
if (location.protocol === "file:") {
  // Material's search looks for this name to find out that it is in a frame
  window.IFrameWorker = window.Worker = class extends EventTarget {
    constructor(address) {
      super();
      const worker = this;
      this.waiting = [];
      const frame = document.createElement("iframe");
      frame.hidden = true;
      document.body.append(frame);
      const inner = frame.contentWindow;
      inner.postMessage = (data) => worker.dispatchEvent(new MessageEvent("message", { data }));
      inner.importScripts = (...scripts) => Promise.all(scripts.map((script) => add(inner, script)));
      this.inner = inner;
      add(inner, address).then(() => {
        this.ready = true;
        this.waiting.splice(0).forEach((data) => this.postMessage(data));
      });
    }

    postMessage(data) {
      if (!this.ready) { this.waiting.push(data); return; }
      this.inner.dispatchEvent(new MessageEvent("message", { data, source: this.inner }));
    }

    terminate() {
      this.inner.frameElement.remove();
    }

    set onmessage(handler) { this.addEventListener("message", handler); }
  };

  function add(inner, address) {
    return new Promise((resolve, reject) => {
      const script = inner.document.createElement("script");
      script.src = address;
      script.addEventListener("load", resolve);
      script.addEventListener("error", () => reject(new Error(`${address} cannot be loaded`)));
      inner.document.body.append(script);
    });
  }
}
