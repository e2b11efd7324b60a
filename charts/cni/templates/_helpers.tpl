{{- define "cni.labels" -}}
k8s-app: istio-cni-node
release: {{ .Release.Name }}
istio.io/rev: {{ .Values.revision | default "default" | quote }}
app.kubernetes.io/name: istio-cni
app.kubernetes.io/part-of: istio
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
{{- end -}}

{{- define "cni.image" -}}
{{ .Values.hub | default .Values.global.hub }}/{{ .Values.image }}:{{ .Values.tag | default .Values.global.tag | default .Chart.AppVersion }}
{{- end -}}
