import { StrictMode } from "react";
import { createRoot } from "react-dom/client";
import { createHostClient } from "../client/host-client.ts";
import { Overview } from "../features/overview/overview.tsx";
import "../ui/base.css";

const root = document.getElementById("root");
if (root === null) throw new Error("index.html has no #root");
createRoot(root).render(
  <StrictMode>
    <Overview host={createHostClient(window.location)} />
  </StrictMode>,
);
